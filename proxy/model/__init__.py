"""The basic types of the service: identifiers, keys, presets, formats, selections. Pure."""
