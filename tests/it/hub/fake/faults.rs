//! What can go wrong, by name: each fault has the place where it shows, and a rule says how often and for which requests.

use std::sync::Mutex;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// `GET /api/models/REPO[/revision/REV]`.
    Info,
    /// `GET /api/models/REPO/tree/REV`.
    Tree,
    /// What is asked of the Hub's address of a file, `HEAD` or `GET`: where it lies, what it is.
    Resolve,
    /// The same, `HEAD` only.
    Head,
    /// Where a file's bytes come from, the Hub or the other origin.
    Bytes,
    Create,
    Branch,
    Preupload,
    /// `POST REPO.git/info/lfs/objects/batch`.
    Batch,
    /// Bytes of an LFS object, or a part of one.
    Put,
    /// The end of an upload in parts.
    Complete,
    Verify,
    Commit,
    XetToken,
    /// Xet's store of chunks.
    Cas,
}

macro_rules! faults {
    ($($fault:ident $name:literal $place:ident $about:literal;)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(crate) enum Fault { $($fault),* }

        /// Fault, name, place, what happens.
        pub(crate) const ALL: &[(Fault, &str, Place, &str)] = &[$((Fault::$fault, $name, Place::$place, $about)),*];
    };
}

faults! {
    Get403 "get403" Bytes "403 in place of bytes";
    Get404 "get404" Bytes "404 in place of bytes";
    Get500 "get500" Bytes "500 in place of bytes";
    Get429 "get429" Bytes "429 with Retry-After: 1";
    Get503 "get503" Bytes "503 with Retry-After: 1";
    Get429Long "get429-long" Bytes "429 with Retry-After: 86400";
    Get429Odd "get429-odd" Bytes "429 with a Retry-After that is no number";
    LinkExpired "link-expired" Bytes "403 in place of bytes until the Hub is asked for the address anew";
    LinkOnce "link-once" Bytes "a signed address serves the range that it was first used for, and 403 for any other";
    Truncate "truncate" Bytes "half of the announced body, then the end";
    TruncateClose "truncate-close" Bytes "half of a body of unknown length, then the end";
    Stall "stall" Bytes "half of the body, then nothing";
    Drip "drip" Bytes "one byte a second";
    SlowHead "slow-head" Bytes "headers at one byte a second";
    Endless "endless" Bytes "chunks without end";
    WrongBytes "wrong-bytes" Bytes "the right size, other bytes";
    NoRange "no-range" Bytes "200 and the whole file for a range";
    WrongRange "wrong-range" Bytes "206 with a Content-Range that was not asked for";
    WrongTotal "wrong-total" Bytes "206 of a file of another size";
    NoContentRange "no-content-range" Bytes "206 without Content-Range";
    ShortRange "short-range" Bytes "206 with half of the range, told so";
    LongBody "long-body" Bytes "206 with a body longer than the range";
    EmptyBody "empty-body" Bytes "a success without bytes";
    Get416 "get416" Bytes "416 for a range that is there";
    Gzip "gzip" Bytes "Content-Encoding: gzip";
    Close "close" Bytes "the end of the connection in place of an answer";
    Hang "hang" Bytes "no answer at all";
    Garbage "garbage" Bytes "what is no HTTP";
    HtmlPage "html-page" Bytes "200 and a page of HTML, as captive portals send it";
    Changed "changed" Bytes "another file: other bytes of the same size under another ETag";
    HeadHang "head-hang" Head "no answer to HEAD";
    Head500 "head500" Head "500 to HEAD";
    RedirectOther "redirect-other" Resolve "302 to the other origin, which serves the file";
    RedirectLoop "redirect-loop" Resolve "302 to itself";
    RedirectFile "redirect-file" Resolve "302 to file:///etc/passwd";
    RedirectNowhere "redirect-nowhere" Resolve "302 without Location";
    EtagTraversal "etag-traversal" Resolve "an ETag that leads out of the cache";
    EtagOdd "etag-odd" Resolve "an ETag that is no hash";
    EtagLie "etag-lie" Resolve "the hash of another file as ETag";
    CommitTraversal "commit-traversal" Resolve "an X-Repo-Commit that leads out of the cache";
    SizeHeaderLie "size-header-lie" Resolve "an X-Linked-Size that is not the file's";
    Info500 "info500" Info "500";
    Info429 "info429" Info "429 with Retry-After: 1";
    InfoHang "info-hang" Info "no answer";
    InfoGarbage "info-garbage" Info "no JSON";
    InfoHuge "info-huge" Info "JSON without end";
    InfoDeep "info-deep" Info "JSON of a million open brackets";
    ShaTraversal "sha-traversal" Info "a commit that leads out of the cache";
    SiblingTraversal "sibling-traversal" Info "a file name that leads out of the target";
    RevisionMoves "revision-moves" Info "the branch gets a new commit right after this answer";
    Tree500 "tree500" Tree "500";
    TreeGarbage "tree-garbage" Tree "no JSON";
    TreeObject "tree-object" Tree "an object in place of a list";
    TreeHuge "tree-huge" Tree "JSON without end";
    TreeTraversal "tree-traversal" Tree "a file `../../ESCAPED.json`";
    TreeDeepTraversal "tree-deep-traversal" Tree "a file `a/../../../ESCAPED.json`";
    TreeAbsolute "tree-absolute" Tree "a file with an absolute path";
    TreeNul "tree-nul" Tree "a NUL in a file's name";
    TreeControl "tree-control" Tree "escape sequences in a file's name";
    TreeEmptyName "tree-empty-name" Tree "a file without a name";
    TreeLong "tree-long" Tree "a file's name of 100,000 letters";
    TreeTwice "tree-twice" Tree "one file twice, with different hashes";
    TreeFileAndFolder "tree-file-and-folder" Tree "a file that is also a folder";
    TreeOid "tree-oid" Tree "hashes that lead out of the cache";
    TreeShaLie "tree-sha-lie" Tree "the hash of another file";
    TreePlain "tree-plain" Tree "no LFS, and the SHA-1 of the bytes in place of git's, as mirrors without git list it";
    SizeLie "size-lie" Tree "sizes one byte too large";
    SizeSmall "size-small" Tree "sizes one byte too small";
    SizeHuge "size-huge" Tree "sizes of 2^62 bytes";
    SizeNegative "size-negative" Tree "negative sizes";
    LinkOther "link-other" Tree "the next page is at the other origin";
    LinkFile "link-file" Tree "the next page is file:///etc/passwd";
    LinkCircle "link-circle" Tree "the next page is this one";
    LinkEndless "link-endless" Tree "there is always a next page";
    Create409 "create409" Create "409: it exists";
    Create403 "create403" Create "403";
    Create500 "create500" Create "500";
    Branch409 "branch409" Branch "409: it exists";
    Preupload500 "preupload500" Preupload "500";
    PreuploadGarbage "preupload-garbage" Preupload "no JSON";
    Batch500 "batch500" Batch "500";
    BatchError "batch-error" Batch "each object is refused";
    BatchFile "batch-file" Batch "uploads go to file:///etc/passwd";
    Put500 "put500" Put "500";
    Put403 "put403" Put "403: the address has expired";
    PutBreak "put-break" Put "the connection ends after half of the bytes";
    PutHang "put-hang" Put "the bytes are taken, no answer comes";
    PutLost "put-lost" Put "200, and the bytes are lost";
    Complete500 "complete500" Complete "500";
    Verify404 "verify404" Verify "404: it is not there";
    Commit500Done "commit500-done" Commit "carried out, answered with 500";
    CommitCloseDone "commit-close-done" Commit "carried out, the connection ends without an answer";
    CommitHangDone "commit-hang-done" Commit "carried out, no answer comes";
    CommitGarbageDone "commit-garbage-done" Commit "carried out, answered with what is no JSON";
    Commit500 "commit500" Commit "not carried out, answered with 500";
    Commit400 "commit400" Commit "not carried out, refused with 400";
    CommitUnseen "commit-unseen" Commit "answered as if it were carried out, and never seen again";
    Commit429 "commit429" Commit "not carried out, answered with 429 and Retry-After: 1";
    Commit429Long "commit429-long" Commit "not carried out, answered with 429 and Retry-After: 3600";
    Commit412 "commit412" Commit "not carried out: somebody else committed before";
    CommitMoves "commit-moves" Commit "somebody else commits right before";
    Token500 "xet-token500" XetToken "500";
    TokenFile "xet-token-file" XetToken "the store of chunks is at file:///etc/passwd";
    Cas500 "cas500" Cas "500";
    Cas401 "cas401" Cas "401: the token has expired";
    CasClose "cas-close" Cas "the end of the connection in place of an answer";
    CasHang "cas-hang" Cas "no answer at all";
}

impl Fault {
    fn entry(self) -> (&'static str, Place) {
        let entry = ALL.iter().find(|entry| entry.0 == self).unwrap();
        (entry.1, entry.2)
    }

    pub(crate) fn name(self) -> &'static str {
        self.entry().0
    }

    pub(crate) fn place(self) -> Place {
        self.entry().1
    }

    pub(crate) fn by_name(name: &str) -> Option<Self> {
        ALL.iter().find(|entry| entry.1 == name).map(|entry| entry.0)
    }
}

/// A fault, and for which requests of its place it shows.
#[derive(Clone, Debug)]
pub(crate) struct Rule {
    pub(crate) fault: Fault,
    /// How often; `None` for ever.
    pub(crate) times: Option<u32>,
    /// How many requests are answered well before.
    pub(crate) skip: u32,
    /// Only requests whose address has this part; LFS files' addresses elsewhere end with their names too.
    pub(crate) part: String,
}

impl Rule {
    pub(crate) fn once(fault: Fault) -> Self {
        Self::times(fault, 1)
    }

    pub(crate) fn times(fault: Fault, times: u32) -> Self {
        Self { fault, times: Some(times), skip: 0, part: String::new() }
    }

    pub(crate) fn always(fault: Fault) -> Self {
        Self { fault, times: None, skip: 0, part: String::new() }
    }

    pub(crate) fn after(self, skip: u32) -> Self {
        Self { skip, ..self }
    }

    pub(crate) fn on(self, part: &str) -> Self {
        Self { part: part.to_owned(), ..self }
    }

    /// Reads `NAME[:TIMES[:SKIP]][@PART]`; without `TIMES`, or with -1, for ever.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let (rule, part) = text.split_once('@').unwrap_or((text, ""));
        let mut words = rule.split(':');
        let name = words.next().unwrap_or_default();
        let fault = Fault::by_name(name)
            .ok_or_else(|| format!("there is no fault `{name}`: see --list-faults"))?;
        let mut number = |default: i64| words.next().map_or(Ok(default), str::parse::<i64>);
        let (times, skip) = (number(-1), number(0));
        let wrong = |_| format!("`{text}` is no NAME[:TIMES[:SKIP]][@PART]");
        let times = u32::try_from(times.map_err(wrong)?).ok();
        let skip = u32::try_from(skip.map_err(wrong)?).unwrap_or(0);
        Ok(Self { fault, times, skip, part: part.to_owned() })
    }
}

/// What is yet to go wrong.
#[derive(Debug, Default)]
pub(crate) struct Faults(Mutex<Vec<Rule>>);

impl Faults {
    pub(crate) fn add(&self, rule: Rule) {
        self.0.lock().unwrap().push(rule);
    }

    pub(crate) fn clear(&self) {
        self.0.lock().unwrap().clear();
    }

    /// Whether there is a rule for this fault.
    pub(crate) fn has(&self, fault: Fault) -> bool {
        self.0.lock().unwrap().iter().any(|rule| rule.fault == fault)
    }

    /// Whether a fault shows at this request; each call counts as a request.
    pub(crate) fn take(&self, place: Place, target: &str) -> Option<Fault> {
        let mut rules = self.0.lock().unwrap();
        for rule in rules.iter_mut() {
            if rule.fault.place() != place || !target.contains(&rule.part) || rule.times == Some(0)
            {
                continue;
            }
            if rule.skip > 0 {
                rule.skip -= 1;
                continue;
            }
            rule.times = rule.times.map(|times| times - 1);
            return Some(rule.fault);
        }
        None
    }
}
