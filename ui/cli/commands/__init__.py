"""The commands of `qseek`: search_command.py defines `qseek search` and its relatives, and so on.

Open search_command.py first: it is a short one. A command parses its options, asks ui/session.py for what it needs, and
prints a report. recall_run.py and recall_files.py belong to recall_command.py, evaluate_writing.py to
evaluate_command.py. ui/cli/main.py imports a command's file only when the command runs, and every file imports torch,
lancedb and rich only inside its functions.

Commands may import ui/cli, ui/session.py and ui/reports; recall and evaluate also engine/evaluation and
engine/datasets; train and models also training, engine/models and engine/checkpoints.
"""
