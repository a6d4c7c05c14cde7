//! Plain text, cut into documents.

use std::io::{BufRead, Read as _};

use super::lines::{Lines, not_utf8, refuse_utf16, too_long};
use super::{LONGEST, Place, Take};
use crate::error::{IoContext as _, Result};
use crate::pipeline::data::inputs::Input;
use crate::pipeline::data::record::Record;
use crate::pipeline::project::Documents;

pub(super) fn read(input: &Input, reader: &mut impl BufRead, take: &mut Take<'_>) -> Result<()> {
    match input.documents {
        Documents::Lines => lines(input, reader, take),
        Documents::Paragraphs => paragraphs(input, reader, take),
        Documents::File => whole(input, reader, take),
    }
}

fn lines(input: &Input, reader: &mut impl BufRead, take: &mut Take<'_>) -> Result<()> {
    let mut lines = Lines::new(reader, &input.path);
    loop {
        let number = lines.number + 1;
        let Some(line) = lines.next()? else { return Ok(()) };
        if line == Ok("") {
            continue;
        }
        if !take(Place::Line(number), line.map(Record::Text))? {
            return Ok(());
        }
    }
}

fn paragraphs(input: &Input, reader: &mut impl BufRead, take: &mut Take<'_>) -> Result<()> {
    let mut lines = Lines::new(reader, &input.path);
    let mut paragraph = String::new();
    let mut start = 0;
    let mut wrong: Option<(u64, String)> = None;
    loop {
        let number = lines.number + 1;
        let line = lines.next()?;
        let at_end = line.is_none();
        match line {
            Some(Ok(line)) if !line.trim().is_empty() => {
                if paragraph.is_empty() {
                    start = number;
                } else {
                    paragraph.push('\n');
                }
                if paragraph.len() + line.len() > LONGEST {
                    wrong.get_or_insert((start, too_long()));
                    paragraph.truncate(1);
                }
                if wrong.is_none() {
                    paragraph.push_str(line);
                }
            }
            Some(Err(problem)) => {
                wrong.get_or_insert((number, problem));
                if paragraph.is_empty() {
                    paragraph.push(' ');
                }
            }
            // An empty line, or the end.
            _ => {
                let go_on = match wrong.take() {
                    Some((line, problem)) => take(Place::Line(line), Err(problem))?,
                    None if paragraph.is_empty() => true,
                    None => take(Place::Line(start), Ok(Record::Text(&paragraph)))?,
                };
                paragraph.clear();
                if at_end || !go_on {
                    return Ok(());
                }
            }
        }
    }
}

fn whole(input: &Input, reader: &mut impl BufRead, take: &mut Take<'_>) -> Result<()> {
    let mut bytes = Vec::new();
    reader.take(LONGEST as u64 + 1).read_to_end(&mut bytes).at("read", &input.path)?;
    refuse_utf16(&bytes, &input.path)?;
    let text = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    if bytes.len() > LONGEST {
        take(Place::Line(1), Err(format!("{}; cut it into `paragraphs`", too_long())))?;
        return Ok(());
    }
    match std::str::from_utf8(text) {
        Ok(text) => take(Place::Line(1), Ok(Record::Text(text.replace("\r\n", "\n").trim_end())))?,
        Err(error) => take(Place::Line(1), Err(not_utf8(&error)))?,
    };
    Ok(())
}
