"""Alembic's migrations, shipped with the package.

A new one is a file in `versions/`, numbered like `0002_what_it_does.py`, that says the number before it as its
`down_revision`. It changes tables inside `op.batch_alter_table`, because SQLite can only rebuild them, and runs inside
one transaction on both databases. Released ones never change. The tests upgrade step by step, and compare the end with
`tables.py`.
"""
