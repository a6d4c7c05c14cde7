//! Lines of bounded length.

use std::io::{BufRead, Read as _};
use std::path::Path;

use super::LONGEST;
use crate::error::{Error, IoContext as _, Result};

/// Reads lines, without their ends.
pub(super) struct Lines<'a, R> {
    reader: &'a mut R,
    path: &'a Path,
    buffer: Vec<u8>,
    /// Number of the line that was read last, from 1.
    pub(super) number: u64,
}

impl<'a, R: BufRead> Lines<'a, R> {
    pub(super) fn new(reader: &'a mut R, path: &'a Path) -> Self {
        Self { reader, path, buffer: Vec::new(), number: 0 }
    }

    /// The next line; what is wrong with it as text.
    pub(super) fn next(&mut self) -> Result<Option<Result<&str, String>>> {
        self.buffer.clear();
        let mut limited = self.reader.by_ref().take(LONGEST as u64 + 1);
        if limited.read_until(b'\n', &mut self.buffer).at("read", self.path)? == 0 {
            return Ok(None);
        }
        self.number += 1;
        if self.number == 1 {
            refuse_utf16(&self.buffer, self.path)?;
        }
        if self.buffer.len() > LONGEST && self.buffer.last() != Some(&b'\n') {
            self.skip_line()?;
            return Ok(Some(Err(too_long())));
        }
        if self.buffer.last() == Some(&b'\n') {
            self.buffer.pop();
        }
        if self.buffer.last() == Some(&b'\r') {
            self.buffer.pop();
        }
        let mut line = self.buffer.as_slice();
        if self.number == 1 {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        Ok(Some(std::str::from_utf8(line).map_err(|e| not_utf8(&e))))
    }

    fn skip_line(&mut self) -> Result<()> {
        loop {
            let chunk = self.reader.fill_buf().at("read", self.path)?;
            if chunk.is_empty() {
                return Ok(());
            }
            let end = chunk.iter().position(|&byte| byte == b'\n');
            let used = end.map_or(chunk.len(), |at| at + 1);
            self.reader.consume(used);
            if end.is_some() {
                return Ok(());
            }
        }
    }
}

/// Files of Windows programs that are not UTF-8 at all.
pub(super) fn refuse_utf16(start: &[u8], path: &Path) -> Result<()> {
    if start.starts_with(b"\xff\xfe") || start.starts_with(b"\xfe\xff") {
        return Err(Error::Data {
            path: path.to_owned(),
            line: None,
            problem: "it is UTF-16, not UTF-8".into(),
            hint: "convert it: iconv -f UTF-16 -t UTF-8 IN > OUT".into(),
        });
    }
    Ok(())
}

pub(super) fn too_long() -> String {
    format!("it is longer than {} MiB", LONGEST >> 20)
}

pub(super) fn not_utf8(error: &std::str::Utf8Error) -> String {
    format!("it is not UTF-8 (byte {})", error.valid_up_to() + 1)
}
