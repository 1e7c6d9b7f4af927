"""OMOP Common Data Model 5.3 and 5.4 (https://ohdsi.github.io/CommonDataModel) -> MEDS."""
