"""The command line, `qseek`.

Open main.py first: it lists the commands and says how each of them ends. commands/ holds one file for each group of
commands, options.py the options that several share, typed_input.py checks what a person typed, terminal.py writes to
stdout and stderr, progress_display.py shows progress.

It may import ui/session.py, ui/reports and the ground. Nothing heavy is imported at the top of a file, so that
`qseek --help` answers at once.
"""
