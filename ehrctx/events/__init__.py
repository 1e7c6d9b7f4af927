"""Anything -> MEDS events. A MEDS data set is used in place; nothing downstream knows another format."""
