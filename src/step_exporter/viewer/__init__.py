"""``step-exporter serve``: pages for people, OTLP/HTTP and a JSON API for programs. One Starlette app."""
