"""Command lines, a file each; files and folders that flags name are opened here and nowhere else.

`shared_flags` has what several take, `opening` makes networks and data of them by `inputs`; `frame`
is how a command runs and ends, `work` what it does there.
"""
