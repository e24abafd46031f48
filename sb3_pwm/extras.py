"""The errors for packages that only an extra of this one installs."""


def missing_extra(what: str, package: str | None, extra: str) -> ImportError:
    """Return an error that says how to install what is missing.

    :param what: what needs the package, in the singular, such as ``"a figure"``.
    :param package: name of the package.
    :param extra: the extra of this package that has it.
    """
    return ImportError(f"{what} needs {package}; in a checkout: pip install -c constraints.txt '.[{extra}]'")
