"""Print the tasks of MT80, of which MT30 is the beginning, as a Markdown table."""

from sb3_pwm.suites import mt80

if __name__ == "__main__":
    print("| id | task | observations | actions | steps per episode |\n|---|---|---|---|---|")
    for task_id, task in enumerate(mt80()):
        print(f"| {task_id} | {task.name} | {task.observation_size} | {task.action_size} | {task.episode_length} |")
