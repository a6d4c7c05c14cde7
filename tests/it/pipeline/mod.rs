//! The whole method, run as its users run it: projects in temporary directories, the program as a process.

mod mischief;
mod project;
mod resume;
mod user_errors;
