"""Where facts are kept and rows derived: engines, schema, writing, reading."""
