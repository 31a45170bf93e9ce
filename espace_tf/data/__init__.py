"""What users bring beside a model: batches of anything, in any form that Keras takes, and more.

Whatever reads or checks data given as objects is here, once (files that a command names are read in
`bin.inputs`); what labels mean is in `objectives`.
"""
