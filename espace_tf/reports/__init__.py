"""What people read: tables, curves, and the HTML page. Nothing here computes what it shows.

jinja2, matplotlib and rich are imported only when something is drawn.
"""
