//! Hashes, base64 and escapes, as the Hub uses them.

use std::fmt::Write as _;
use std::io;

use sha1::Sha1;
use sha2::{Digest, Sha256};

use super::store::Content;

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _infallible = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of a file: its name in LFS.
pub(crate) fn sha256(content: &Content) -> io::Result<String> {
    let mut hash = Sha256::new();
    content.pieces(|piece| hash.update(piece))?;
    Ok(hex(&hash.finalize()))
}

/// Git's name of a file: SHA-1 of `blob SIZE`, a NUL, and the bytes.
pub(crate) fn git_sha1(content: &Content) -> io::Result<String> {
    let mut hash = Sha1::new();
    hash.update(format!("blob {}\0", content.len()));
    content.pieces(|piece| hash.update(piece))?;
    Ok(hex(&hash.finalize()))
}

/// SHA-1 of a file's bytes alone.
pub(crate) fn plain_sha1(content: &Content) -> io::Result<String> {
    let mut hash = Sha1::new();
    content.pieces(|piece| hash.update(piece))?;
    Ok(hex(&hash.finalize()))
}

/// Forty hex digits made of any text.
pub(crate) fn sha1_of(text: &str) -> String {
    hex(&Sha1::digest(text.as_bytes()))
}

/// Decodes base64 of the usual alphabet; `None` if it is none.
pub(crate) fn from_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.trim_end_matches('=').bytes().map(|byte| {
        Some(u32::from(match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        }))
    });
    let digits: Vec<u32> = digits.collect::<Option<_>>()?;
    let mut bytes = Vec::with_capacity(digits.len() * 3 / 4);
    for group in digits.chunks(4) {
        let bits = group.iter().fold(0, |bits, digit| bits << 6 | digit) << (6 * (4 - group.len()));
        let three = bits.to_be_bytes();
        bytes.extend_from_slice(&three[1..group.len()]);
    }
    Some(bytes)
}

/// Whether a text is in these bytes. Skips ahead by what the text ends with (Horspool): tests look through many megabytes.
pub(crate) fn contains(bytes: &[u8], text: &str) -> bool {
    let text = text.as_bytes();
    let Some(last) = text.len().checked_sub(1) else { return true };
    let mut skip = [text.len(); 256];
    for (at, byte) in text.iter().enumerate().take(last) {
        skip[usize::from(*byte)] = last - at;
    }
    let mut at = last;
    while let Some(byte) = bytes.get(at) {
        if bytes[..=at].ends_with(text) {
            return true;
        }
        at += skip[usize::from(*byte)];
    }
    false
}

/// Undoes percent escapes.
pub(crate) fn unescape(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let escaped = (*first == b'%').then(|| after.get(..2)).flatten();
        let escaped =
            escaped.and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[2..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Escapes all but what paths are made of.
pub(crate) fn escape(text: &str) -> String {
    text.bytes().fold(String::new(), |mut escaped, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~/".contains(&byte) {
            escaped.push(char::from(byte));
        } else {
            let _infallible = write!(escaped, "%{byte:02X}");
        }
        escaped
    })
}
