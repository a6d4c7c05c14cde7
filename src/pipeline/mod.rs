//! The ELO pipeline: project file, data, stages, report.
