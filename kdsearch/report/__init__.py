"""What a study shows to people: tables, figures, report.html, dashboard. Everything is made from the study's folder."""
