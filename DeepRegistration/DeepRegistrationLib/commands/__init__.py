"""The command line, one file per command: ``add(commands)`` describes its options, ``run(arguments)`` does it.

Nothing heavy is imported at file scope here: help and mistakes in the options must answer at once, and the time that
``result.json`` states for the imports is measured.
"""
