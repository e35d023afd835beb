"""What every room uses: settings, switches, files, names, and checks of what comes from outside."""
