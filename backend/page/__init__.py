"""What people see of a project in a browser, and the buttons that they press."""
