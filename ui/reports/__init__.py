"""The forms in which a person or a program reads results: tables, JSON lines, Markdown, HTML.

Open hit_formats.py first: it formats the hits of a search. text_forms.py writes single values (counts, sizes, names),
recall_report.py the report of `qseek recall`, writing_report.py that of `qseek evaluate`.

It may import engine/types and, for type checkers alone, the result types of engine/evaluation. It prints nothing.
"""
