"""The compiler: build, measure, search, database, library, models, report and command line."""
