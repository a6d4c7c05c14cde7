//! What each fault may lead to: an allowed set of exit statuses, for one occurrence and for endless ones.

use super::fake::faults::{ALL, Fault, Place};

/// A fault and what may come of it. 0 always means: with the right bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Expected {
    pub(super) fault: Fault,
    /// Statuses when it shows once.
    pub(super) once: &'static [i32],
    /// Statuses when it shows for ever.
    pub(super) ever: &'static [i32],
    /// What is said then: one of these, in small letters.
    pub(super) says: &'static [&'static str],
}

/// Faults of reading, with what is known of each.
pub(super) fn of_reading() -> Vec<Expected> {
    let reading = [Place::Info, Place::Tree, Place::Resolve, Place::Head, Place::Bytes];
    let faults = ALL.iter().filter(|entry| reading.contains(&entry.2)).map(|entry| entry.0);
    faults
        .map(|fault| {
            expected(fault).unwrap_or_else(|| panic!("nothing is said of {}", fault.name()))
        })
        .collect()
}

const FILE: &[&str] = &["safetensors"];
const MODEL: &[&str] = &["acme/model"];

fn expected(fault: Fault) -> Option<Expected> {
    use Fault as F;
    let of = |once, ever, says| Some(Expected { fault, once, ever, says });
    match fault {
        // The Hub's final words.
        F::Get403 => of(&[0, 6], &[6], FILE),
        F::Get404 => of(&[0, 3, 6], &[3, 6], FILE),
        // A moment of weakness is waited out.
        F::Get500 | F::Get429 | F::Get503 | F::Get429Odd => of(&[0], &[6], FILE),
        F::Get429Long => of(&[6], &[6], FILE),
        F::LinkExpired => of(&[0], &[6], FILE),
        F::LinkOnce => of(&[0], &[0], &[]),
        F::Endless => of(&[0, 6, 7], &[0, 6, 7], FILE),
        F::Truncate | F::TruncateClose | F::Stall | F::Drip | F::SlowHead | F::Close | F::Hang => {
            of(&[0], &[6, 7], FILE)
        }
        F::Garbage | F::EmptyBody | F::HtmlPage => of(&[0, 6, 7], &[6, 7], FILE),
        // Wrong bytes can be asked for again, or told; they are never kept.
        F::WrongBytes | F::Changed => of(&[0, 6, 7], &[0, 6, 7], &[]),
        // A whole file for a range may be taken for what it is.
        F::NoRange => of(&[0, 7], &[0, 6, 7], &[]),
        F::ShortRange => of(&[0, 6, 7], &[0, 6, 7], &[]),
        F::WrongRange | F::WrongTotal | F::NoContentRange | F::LongBody | F::Get416 | F::Gzip => {
            of(&[0, 6, 7], &[0, 6, 7], &[])
        }
        // What the listing says is enough: these may never be seen.
        F::HeadHang | F::Head500 => of(&[0], &[0, 6], &[]),
        F::RedirectOther => of(&[0], &[0], &[]),
        F::RedirectLoop | F::RedirectFile | F::RedirectNowhere => of(&[0, 6, 7], &[6, 7], MODEL),
        F::EtagTraversal | F::EtagOdd | F::EtagLie | F::CommitTraversal | F::SizeHeaderLie => {
            of(&[0, 6, 7], &[0, 6, 7], &[])
        }
        F::Info500 | F::Info429 | F::InfoHang => of(&[0], &[6], MODEL),
        F::InfoGarbage | F::InfoDeep | F::InfoHuge => of(&[0, 6, 7], &[6, 7], MODEL),
        F::ShaTraversal => of(&[7], &[7], MODEL),
        F::SiblingTraversal | F::RevisionMoves => of(&[0], &[0], &[]),
        F::Tree500 => of(&[0], &[6], MODEL),
        F::TreeGarbage | F::TreeObject | F::TreeHuge => of(&[0, 6, 7], &[6, 7], MODEL),
        F::TreeTraversal
        | F::TreeDeepTraversal
        | F::TreeAbsolute
        | F::TreeNul
        | F::TreeControl
        | F::TreeEmptyName => of(&[7], &[7], MODEL),
        F::TreeLong | F::TreeTwice => of(&[7], &[7], MODEL),
        // Nobody needs to ask for that file.
        F::TreeFileAndFolder => of(&[0, 3, 7], &[0, 3, 7], MODEL),
        F::TreeOid => of(&[7], &[7], MODEL),
        F::TreePlain => of(&[0], &[0], &[]),
        F::TreeShaLie | F::SizeLie | F::SizeSmall => of(&[7], &[6, 7], MODEL),
        F::SizeHuge => of(&[4, 6, 7], &[4, 6, 7], &[]),
        F::SizeNegative => of(&[7], &[7], MODEL),
        F::LinkOther | F::LinkFile | F::LinkCircle | F::LinkEndless => of(&[0, 7], &[7], MODEL),
        _ => None,
    }
}
