"""The commands of `qseek`: search_command.py holds `qseek search` and what belongs to it, and so on.

Open search_command.py first: it is a short one. A command parses its options, asks ui/session.py for what it needs, and
prints a report. ui/cli/main.py imports a file of this folder only when its command runs, and every file imports torch,
lancedb and rich only inside its functions.

Commands may import ui/cli, ui/session.py and ui/reports; recall and evaluate also engine/evaluation and
engine/datasets; train and models also training, engine/models and engine/checkpoints.
"""
