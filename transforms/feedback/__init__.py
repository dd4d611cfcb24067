"""What the feedback pipeline knows and does: records become items, items become cases, cases are settled."""
