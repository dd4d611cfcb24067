"""What a token contributes to the loss, one module a form; :mod:`trainers.objective` puts them together."""
