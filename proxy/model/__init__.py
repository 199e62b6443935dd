"""The words of the domain: identifiers, keys, presets, formats, selections. Pure."""
