"""What people look at: contact sheets, plots and the page of a run."""
