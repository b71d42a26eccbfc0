"""Processes that a system runs beside itself: started, watched, replaced and stopped."""
