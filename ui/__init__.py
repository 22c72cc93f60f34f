"""The parts that a person or a program touches: the command line, the page, and the reports that both show.

Open session.py first: it opens what --index and --model name. cli/ holds the commands, page/ the page of `qseek app`,
and reports/ formats results.

It may import indexer and engine; the commands that train may import training. Nothing imports ui.
"""
