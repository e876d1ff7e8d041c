"""Running a federation: the server's rounds, app folders, and the engines that simulate sites."""
