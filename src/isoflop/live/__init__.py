"""One run under way: `Monitor` counts, records, forecasts and advises at log steps."""
