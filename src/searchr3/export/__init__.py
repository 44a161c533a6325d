"""Out into the ecosystem: a model as a folder that other libraries load, with its card, and onto the Hub."""

from searchr3.export.folder import FORMATS, Format, export

__all__ = ["FORMATS", "Format", "export"]
