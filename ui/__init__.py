"""What a person or a program touches: the command line, the page and the reports that they show.

Open session.py first: it goes from --index and --model to something that can be asked. cli/ holds the commands, page/
the page of `qseek app`, and reports/ says how results are written.

It may import indexer and engine; the commands that train may import training. Nothing imports ui.
"""
