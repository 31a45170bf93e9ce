"""What people read: tables, curves, the HTML page; a form is a module.

Nothing here computes what it shows. jinja2, matplotlib and rich are imported only when something is
drawn.
"""
