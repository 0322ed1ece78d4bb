//! The one domain error.
//!
//! A [`Fault`] says what failed ([`Fault::what`], lower-case, fits after "failed to …"), about which
//! object, why ([`Fault::source`]) and what to do ([`Fault::hint`]). Its [`Kind`] says whose fault it
//! is and whether the same call may succeed later; each kind is exactly one gRPC code, because
//! callers steer by codes: `UNAVAILABLE`, `ABORTED`, `DEADLINE_EXCEEDED` and `CANCELLED` mean "may
//! still be running, ask again", `RESOURCE_EXHAUSTED` may move the volume elsewhere, and anything
//! else is final for that request.
//!
//! Faults are cheap to clone: callers that joined a running operation all get its fault.

use crate::Bytes;
use std::{error::Error, fmt, sync::Arc};

/// Result of everything that can fail in Larder.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

/// What sort of failure; each is one gRPC code (named in brackets).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// The request is malformed or asks for something this kind of storage cannot do
    /// [`INVALID_ARGUMENT`]. Final: change the request.
    Invalid,
    /// The volume, snapshot, source or path does not exist [`NOT_FOUND`].
    NotFound,
    /// The name exists with other properties [`ALREADY_EXISTS`]. Final: change name or arguments.
    Conflict,
    /// Another operation holds the object, or a paging token is not ours [`ABORTED`]. Retry.
    Aborted,
    /// The state of the object forbids it: in use, foreign data found, not staged
    /// [`FAILED_PRECONDITION`]. Somebody must act before a retry helps.
    Precondition,
    /// A size that cannot be had [`OUT_OF_RANGE`]. Final: change the size.
    OutOfRange,
    /// No space, no loop devices, no quota ids, no attachment slots [`RESOURCE_EXHAUSTED`].
    Exhausted,
    /// Not allowed for these credentials [`PERMISSION_DENIED`].
    Denied,
    /// Secrets are missing or wrong [`UNAUTHENTICATED`].
    Unauthenticated,
    /// The storage cannot be reached just now: pool unmounted, server down, starting up
    /// [`UNAVAILABLE`]. Retry.
    Unavailable,
    /// The caller's or the operation's time ran out; the work may go on [`DEADLINE_EXCEEDED`].
    Deadline,
    /// This RPC is not offered [`UNIMPLEMENTED`]. Never retried.
    Unsupported,
    /// What exists is damaged: a record that cannot be read, a file system with errors
    /// [`DATA_LOSS`].
    Corrupt,
    /// Anything unforeseen [`INTERNAL`].
    Internal,
}

/// A failure, ready to be shown to a person and to steer a program.
#[derive(Clone)]
pub struct Fault {
    kind: Kind,
    what: String,
    hint: Option<String>,
    source: Option<Arc<dyn Error + Send + Sync>>,
    simulated_crash: bool,
    shortage: Option<Shortage>,
}

/// Want of space in the storage that was worked on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shortage {
    /// So much must be free there for the same work to succeed; None: nobody knows, the kernel just
    /// had no more.
    pub needs: Option<Bytes>,
}

impl Fault {
    /// A fault of `kind`; `what` is lower-case and fits after "failed to …".
    pub fn new(kind: Kind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            hint: None,
            source: None,
            simulated_crash: false,
            shortage: None,
        }
    }

    /// [`Kind::Invalid`].
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, what)
    }
    /// [`Kind::NotFound`].
    pub fn not_found(what: impl Into<String>) -> Self {
        Self::new(Kind::NotFound, what)
    }
    /// [`Kind::Conflict`].
    pub fn conflict(what: impl Into<String>) -> Self {
        Self::new(Kind::Conflict, what)
    }
    /// [`Kind::Aborted`].
    pub fn aborted(what: impl Into<String>) -> Self {
        Self::new(Kind::Aborted, what)
    }
    /// [`Kind::Precondition`].
    pub fn precondition(what: impl Into<String>) -> Self {
        Self::new(Kind::Precondition, what)
    }
    /// [`Kind::OutOfRange`].
    pub fn out_of_range(what: impl Into<String>) -> Self {
        Self::new(Kind::OutOfRange, what)
    }
    /// [`Kind::Exhausted`].
    pub fn exhausted(what: impl Into<String>) -> Self {
        Self::new(Kind::Exhausted, what)
    }
    /// [`Kind::Exhausted`] for want of space: once `needs` are free the same call succeeds.
    pub fn no_room(what: impl Into<String>, needs: Bytes) -> Self {
        Self { shortage: Some(Shortage { needs: Some(needs) }), ..Self::exhausted(what) }
    }
    /// [`Kind::Unavailable`].
    pub fn unavailable(what: impl Into<String>) -> Self {
        Self::new(Kind::Unavailable, what)
    }
    /// [`Kind::Unsupported`].
    pub fn unsupported(what: impl Into<String>) -> Self {
        Self::new(Kind::Unsupported, what)
    }
    /// [`Kind::Corrupt`].
    pub fn corrupt(what: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, what)
    }
    /// [`Kind::Internal`].
    pub fn internal(what: impl Into<String>) -> Self {
        Self::new(Kind::Internal, what)
    }

    /// An I/O failure, its kind read off the error: no space and quota are [`Kind::Exhausted`],
    /// a read-only file system [`Kind::Precondition`], an absent path [`Kind::NotFound`],
    /// stale or timed-out network storage [`Kind::Unavailable`], the rest [`Kind::Internal`].
    pub fn io(what: impl Into<String>, error: std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        let kind = match error.kind() {
            E::StorageFull | E::QuotaExceeded | E::FileTooLarge => Kind::Exhausted,
            E::ReadOnlyFilesystem | E::ResourceBusy => Kind::Precondition,
            E::NotFound => Kind::NotFound,
            E::StaleNetworkFileHandle | E::TimedOut | E::HostUnreachable => Kind::Unavailable,
            _ => Kind::Internal,
        };
        let shortage = (error.kind() == E::StorageFull).then_some(Shortage { needs: None });
        let hint = match error.kind() {
            E::StorageFull => Some("make room on that file system: space (df) or inodes (df -i)"),
            E::QuotaExceeded => Some("raise the quota, or delete what is not needed"),
            _ => None,
        };
        let hint = hint.map(str::to_owned);
        Self { shortage, hint, ..Self::new(kind, what).because(error) }
    }

    /// Says what to do about it (shown in brackets after the text).
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Names the cause.
    #[must_use]
    pub fn because(mut self, source: impl Error + Send + Sync + 'static) -> Self {
        self.source = Some(Arc::new(source));
        self
    }

    /// Puts `context` in front of the text: `context: what`.
    #[must_use]
    pub fn during(mut self, context: impl fmt::Display) -> Self {
        self.what = format!("{context}: {}", self.what);
        self
    }

    /// The same fault with another kind, for a boundary that knows better.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// The same fault of other storage than that which is worked on: room made here helps nothing.
    #[must_use]
    pub fn elsewhere(mut self) -> Self {
        self.shortage = None;
        self
    }

    /// The sort of failure.
    pub fn kind(&self) -> Kind {
        self.kind
    }
    /// What is wanted, where it failed for want of space, and not of devices or ids, which are
    /// `Exhausted` too.
    pub fn shortage(&self) -> Option<Shortage> {
        self.shortage.filter(|_| self.kind == Kind::Exhausted)
    }
    /// Whether it failed for want of space.
    pub fn is_no_room(&self) -> bool {
        self.shortage().is_some()
    }
    /// What it came from.
    pub fn cause(&self) -> Option<&(dyn Error + Send + Sync + 'static)> {
        self.source.as_deref()
    }
    /// The number of the system's error that it came from.
    pub fn os_error(&self) -> Option<i32> {
        self.cause()?.downcast_ref::<std::io::Error>()?.raw_os_error()
    }
    /// What failed, without hint and cause.
    pub fn what(&self) -> &str {
        &self.what
    }
    /// What to do, where something can be said.
    pub fn hint_text(&self) -> Option<&str> {
        self.hint.as_deref()
    }

    /// A crash that a test asked for: no undo may run, as after `kill -9`.
    #[cfg(feature = "crash-points")]
    pub(crate) fn simulated_crash(at: &str) -> Self {
        let mut fault = Self::internal(format!("simulated crash at {at}"));
        fault.simulated_crash = true;
        fault
    }
    /// Whether this is a test's simulated crash, after which nothing may be cleaned up.
    pub fn is_simulated_crash(&self) -> bool {
        self.simulated_crash
    }
}

/// The whole story on one line: `what: cause: deeper cause (hint: …)`. Control characters are escaped:
/// causes quote what they do not understand, and a file or another program could forge lines of logs.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.tell(&mut OneLine(f))
    }
}

/// Writes text without its control characters.
struct OneLine<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl fmt::Write for OneLine<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for part in text.split_inclusive(char::is_control) {
            let plain = part.trim_end_matches(char::is_control);
            self.0.write_str(plain)?;
            write!(self.0, "{}", part[plain.len()..].escape_debug())?;
        }
        Ok(())
    }
}

impl Fault {
    fn tell(&self, f: &mut impl fmt::Write) -> fmt::Result {
        f.write_str(&self.what)?;
        let mut cause: Option<&dyn Error> = self.source.as_deref().map(|e| e as &dyn Error);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        if let Some(hint) = &self.hint {
            write!(f, " (hint: {hint})")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {self}", self.kind)
    }
}

impl Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_cause_quotes_forges_no_line() {
        let cause = std::io::Error::other("unknown field `a\nERROR all is lost\u{7f}`");
        let fault = Fault::corrupt("read a record").because(cause).hint("ä…\t\"x\"");
        assert_eq!(
            fault.to_string(),
            "read a record: unknown field `a\\nERROR all is lost\\u{7f}` (hint: ä…\\t\"x\")"
        );
    }

    #[test]
    fn a_fault_tells_what_why_and_what_to_do_on_one_line() {
        let io = std::io::Error::other("device is gone");
        let fault = Fault::internal("read image of volume default/a")
            .because(io)
            .hint("check dmesg")
            .during("snapshot default/s");
        assert_eq!(
            fault.to_string(),
            "snapshot default/s: read image of volume default/a: device is gone (hint: check dmesg)"
        );
    }

    #[test]
    fn a_full_disk_is_exhausted_and_a_read_only_one_a_precondition() {
        let kind = |code| Fault::io("write", std::io::Error::from_raw_os_error(code)).kind();
        assert_eq!(kind(28), Kind::Exhausted); // ENOSPC
        assert_eq!(kind(122), Kind::Exhausted); // EDQUOT
        assert_eq!(kind(30), Kind::Precondition); // EROFS
        assert_eq!(kind(2), Kind::NotFound); // ENOENT
        assert_eq!(kind(116), Kind::Unavailable); // ESTALE
        assert_eq!(kind(5), Kind::Internal); // EIO
    }

    #[test]
    fn want_of_space_is_told_from_other_things_that_are_exhausted() {
        let of = |code| Fault::io("write", std::io::Error::from_raw_os_error(code));
        assert!(of(28).during("create volume a/b").is_no_room());
        let planned = Fault::no_room("find 1Gi", Bytes::gib(2)).during("create volume a/b");
        assert_eq!(planned.shortage(), Some(Shortage { needs: Some(Bytes::gib(2)) }));
        assert!(!of(28).elsewhere().is_no_room(), "another file system's end is not this one's");
        assert!(!of(122).is_no_room(), "a quota is not the file system's end");
        assert!(!Fault::exhausted("find a loop device").is_no_room());
        assert!(!of(28).with_kind(Kind::Unavailable).is_no_room());
    }
}
