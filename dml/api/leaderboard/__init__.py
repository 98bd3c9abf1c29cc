"""A leaderboard that anybody can join: entries, claims that lower them, and their page."""
