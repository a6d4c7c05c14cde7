//! Aligned columns of text, by the width that a terminal gives its characters.

use unicode_width::UnicodeWidthStr;

/// How a column is aligned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// Rows of cells; widths come from the content.
pub(crate) struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(columns: &[Align]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row. A row with fewer cells than columns ends early.
    pub(crate) fn row(&mut self, cells: impl Into<Vec<String>>) {
        self.rows.push(cells.into());
    }

    /// The rows as lines, two spaces between columns, no spaces at line ends.
    pub(crate) fn render(&self) -> String {
        let wide = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| width(cell)).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(wide).collect();
        let mut text = String::new();
        for row in &self.rows {
            let cells = row.iter().zip(&widths).zip(&self.columns);
            let padded: Vec<String> = cells
                .filter(|((_, wide), _)| **wide > 0)
                .map(|((cell, wide), align)| {
                    let space = " ".repeat(wide.saturating_sub(width(cell)));
                    match align {
                        Align::Left => format!("{cell}{space}"),
                        Align::Right => format!("{space}{cell}"),
                    }
                })
                .collect();
            text.push_str(padded.join("  ").trim_end());
            text.push('\n');
        }
        text
    }
}

/// Columns of a terminal that a text takes: two for a Hangul syllable, none for a colour sequence.
pub(crate) fn width(text: &str) -> usize {
    let mut parts = text.split("\x1b[");
    let plain = parts.next().map_or(0, UnicodeWidthStr::width);
    let coloured = parts.map(|part| part.split_once('m').map_or(part, |(_, rest)| rest).width());
    plain + coloured.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_empty_ones_vanish() {
        let mut table = Table::new(&[Align::Left, Align::Left, Align::Right]);
        table.row(["a".into(), String::new(), "1".into()]);
        table.row(["├é".into(), String::new(), "100".into()]);
        table.row(["x".into()]);
        assert_eq!(table.render(), "a     1\n├é  100\nx\n");
    }

    #[test]
    fn wide_characters_and_colours_are_measured_as_they_show() {
        let mut table = Table::new(&[Align::Left, Align::Right]);
        table.row(["한국어".into(), "1".into()]);
        table.row(["\x1b[32mok\x1b[0m".into(), "2".into()]);
        assert_eq!(table.render(), "한국어  1\n\x1b[32mok\x1b[0m      2\n");
    }
}
