"""What the page knows without Gradio: chats, rooms that answer, Markdown made safe, pictures, models, ratings."""
