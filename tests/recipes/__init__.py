"""The recipes, as they travel with the installed package and with hd_itsm.pyz."""
