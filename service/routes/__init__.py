"""The public routes, a file for each subject: validate, take the searcher of the moment, ask it, describe what came."""
