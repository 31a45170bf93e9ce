"""Models and layers copied (`cloning`), compared (`likeness`), and lent what is another's.

What a copy is made for is decided elsewhere: a model is rewritten in `rewriting`.
"""
