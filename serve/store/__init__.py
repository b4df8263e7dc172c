"""What outlives a restart: chats with their pictures, ratings, battles and votes, in SQLite or PostgreSQL."""
