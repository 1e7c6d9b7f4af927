"""ehrctx: which architecture and which context length predict best on patient timelines, and how sure are we?

Events become timelines, timelines train models, models are probed, and a report says how sure we are.
"""

__version__ = "0.1.0"
