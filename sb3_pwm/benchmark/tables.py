"""The final returns as a table for a paper (LaTeX) and for a README (Markdown)."""

from sb3_pwm.benchmark.comparison import Comparison
from sb3_pwm.benchmark.texts import estimate, number

NOTE = "Mean final return [95 % bootstrap interval over the seeds] (number of seeds)."
LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
LATEX |= {letter: f"\\{letter}" for letter in "&%$#_{}"}


def final_returns(comparison: Comparison) -> list[list[str]]:
    """Return a header and a row for each algorithm and each policy that has learnt nothing."""
    envs = comparison.envs
    rows = [["", *(f"{env}, {comparison.steps[env][-1]:,} steps" for env in envs)]]
    for algo in comparison.algos:
        cells = [comparison.cell(env, algo) for env in envs]
        rows.append([algo, *(f"{estimate(cell.final)} ({cell.seeds})" if cell else "-" for cell in cells)])
    references = [comparison.references(env) for env in envs]
    for name in dict.fromkeys(name for found in references for name in found):
        rows.append([name, *(number(float(found[name].mean())) if name in found else "-" for found in references)])
    return rows


def markdown(comparison: Comparison) -> str:
    """Return the table in Markdown."""
    header, *rows = [[cell.replace("|", r"\|") for cell in row] for row in final_returns(comparison)]
    lines = [header, ["---", *["---:" for _ in header[1:]]], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{NOTE}\n"


def latex(comparison: Comparison) -> str:
    """Return the table in LaTeX; it needs the package booktabs."""
    header, *rows = [[escaped(cell) for cell in row] for row in final_returns(comparison)]
    lines = [" & ".join(row) + r" \\" for row in rows]
    columns = "l" + "r" * (len(header) - 1)
    top = [f"% {NOTE}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", " & ".join(header) + r" \\", r"\midrule"]
    return "\n".join([*top, *lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escaped(text: str) -> str:
    """Write letters that mean something to LaTeX as themselves."""
    text = "".join(LATEX.get(letter, letter) for letter in text)
    return f"{{{text}}}" if text.startswith(("[", "*")) else text  # arguments of the line break before them
