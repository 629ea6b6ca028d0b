"""Writes schema.md from the models: run ``python docs/make_schema.py`` after a change of the schema."""

from __future__ import annotations

import inspect
import textwrap
from pathlib import Path

from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.schema import CreateIndex

from step_exporter import ddl, models


def page() -> str:
    """The whole page, as Markdown."""
    intro = (models.__doc__ or "").split("\n", 1)[1].strip("\n")
    parts = ["# The schema", "Made by `docs/make_schema.py` from `step_exporter.models`.", code_blocks(intro)]
    by_table = {mapper.local_table.name: mapper.class_ for mapper in models.Base.registry.mappers}
    for name in models.Base.metadata.tables:  # in the order of the module
        parts += table(by_table[name]) if name in by_table else []
    parts.append("## Views")
    parts += [f"### {name}\n\n```sql\n{select.strip()}\n```" for name, select in ddl.VIEWS.items()]
    return "\n\n".join(part.replace("``", "`") if "```" not in part else part for part in parts) + "\n"


def table(model: type[models.Base]) -> list[str]:
    """A heading, what the table is, its columns and its indexes."""
    of = model.__table__
    lines = ["| column | SQLite | PostgreSQL | |", "|---|---|---|---|"]
    for column in of.columns:
        notes = [column.doc or ""]
        if column.primary_key:
            notes.insert(0, "key")
        elif not column.nullable:
            notes.insert(0, "not NULL")
        for key in column.foreign_keys:
            notes.append(f"→ {key.column.table.name}, {key.ondelete}")
        if isinstance(column.type, models.CanonicalJSON):
            notes.insert(0, "JSON")
        engines = (column.type.compile(sqlite.dialect()), column.type.compile(postgresql.dialect()))
        types = " | ".join(text.replace(' COLLATE "C"', "").lower() for text in engines)
        lines.append(f"| {column.name} | {types} | {'; '.join(filter(None, notes))} |")
    parts = [f"## {of.name}", f"`{model.__name__}`. {inspect.getdoc(model)}", "\n".join(lines)]
    indexes = sorted(str(CreateIndex(index).compile(dialect=sqlite.dialect())) for index in of.indexes)
    if indexes:
        parts.append("```sql\n" + "\n".join(indexes) + "\n```")
    return parts


def code_blocks(text: str) -> str:
    """Indented examples as fenced ones; reStructuredText literals as Markdown's."""
    blocks = []
    for block in text.split("\n\n"):
        if block.startswith("    "):
            blocks.append(f"```python\n{textwrap.dedent(block)}\n```")
        else:
            blocks.append(block.replace("``", "`"))
    return "\n\n".join(blocks)


if __name__ == "__main__":
    Path(__file__).with_name("schema.md").write_text(page(), encoding="utf-8")
