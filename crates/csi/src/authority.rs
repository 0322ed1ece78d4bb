//! Lets callers in whose `:authority` is the path of our socket.
//!
//! kubelet's plugin watcher dials a registration socket by its plain path, and gRPC for Go then names
//! it as the request's authority (`%2Fvar%2Flib%2Fkubelet%2F…`), as C-core does. That is no authority by
//! RFC 3986, and our HTTP/2 library resets such a stream with PROTOCOL_ERROR before anybody sees it. An
//! authority means nothing on a UNIX socket, so it is replaced on the way in.
//!
//! ```text
//!  preface ─▶ frame ─┬ HEADERS ─▶ `:authority: …` becomes `:authority: x` ─▶ the server
//!                    └ others ────────────────── as they are ──────────────▶
//! ```
//!
//! The header stays in the form in which it came (indexed or not), so that both ends number their header
//! tables alike; the new value is the shortest there is, so that our table never forgets before theirs.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tonic::transport::server::{Connected, UdsConnectInfo};

const PREFACE: usize = 24;
const FRAME_HEADER: usize = 9;
const HEADERS: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;
/// Larger header blocks pass as they are; callers send a few hundred bytes.
const LARGEST: usize = 64 << 10;
/// Where HPACK's static table has `:authority`.
const AUTHORITY: usize = 1;

/// A connection whose requests have an acceptable authority.
#[derive(Debug)]
pub struct Accepted {
    stream: UnixStream,
    rewriter: Rewriter,
    ready: Vec<u8>,
    taken: usize,
}

impl Accepted {
    /// Over a connection that was accepted.
    pub fn new(stream: UnixStream) -> Self {
        Self { stream, rewriter: Rewriter::default(), ready: Vec::new(), taken: 0 }
    }
}

impl AsyncRead for Accepted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        while this.taken == this.ready.len() {
            this.ready.clear();
            this.taken = 0;
            let mut bytes = [0; 8192];
            let mut read = ReadBuf::new(&mut bytes);
            ready!(Pin::new(&mut this.stream).poll_read(cx, &mut read))?;
            if read.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            this.rewriter.take(read.filled(), &mut this.ready);
        }
        let rest = &this.ready[this.taken..];
        let n = rest.len().min(buf.remaining());
        buf.put_slice(&rest[..n]);
        this.taken += n;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Accepted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }
    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }
    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connected for Accepted {
    type ConnectInfo = UdsConnectInfo;
    fn connect_info(&self) -> Self::ConnectInfo {
        self.stream.connect_info()
    }
}

/// What comes in, byte by byte.
#[derive(Debug, Default)]
struct Rewriter {
    /// Of the preface.
    seen: usize,
    /// A frame's beginning, or the whole of a HEADERS frame.
    held: Vec<u8>,
    /// What is left of a frame that passes as it is.
    passing: usize,
}

impl Rewriter {
    /// Understands the next bytes; what the server is to see of them goes to `out`.
    fn take(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        let n = (PREFACE - self.seen).min(bytes.len());
        out.extend_from_slice(&bytes[..n]);
        self.seen += n;
        bytes = &bytes[n..];
        while !bytes.is_empty() {
            if self.passing > 0 {
                let n = self.passing.min(bytes.len());
                out.extend_from_slice(&bytes[..n]);
                self.passing -= n;
                bytes = &bytes[n..];
                continue;
            }
            let wanted = self.frame().map_or(FRAME_HEADER, |length| FRAME_HEADER + length);
            let n = (wanted - self.held.len()).min(bytes.len());
            self.held.extend_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            let Some(length) = self.frame() else { continue };
            let whole = self.held[3] == HEADERS && self.held[4] & END_HEADERS != 0;
            if !whole || length > LARGEST {
                out.append(&mut self.held);
                self.passing = length;
            } else if self.held.len() == FRAME_HEADER + length {
                out.extend(rewritten(&self.held).as_deref().unwrap_or(&self.held));
                self.held.clear();
            }
        }
    }

    /// The length of the frame that is held, once its header is known.
    fn frame(&self) -> Option<usize> {
        match *self.held.get(..FRAME_HEADER)? {
            [a, b, c, ..] => Some(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c)),
            _ => None,
        }
    }
}

/// A HEADERS frame with another authority; None where there is nothing to replace.
fn rewritten(frame: &[u8]) -> Option<Vec<u8>> {
    let (flags, payload) = (frame[4], frame.get(FRAME_HEADER..)?);
    let padding = if flags & PADDED == 0 { 0 } else { usize::from(*payload.first()?) };
    let start = usize::from(flags & PADDED != 0) + if flags & PRIORITY == 0 { 0 } else { 5 };
    let end = payload.len().checked_sub(padding)?;
    let block = payload.get(start..end)?;
    let (from, to) = authority(block)?;
    let mut new = frame[..FRAME_HEADER + start + from].to_vec();
    new.extend([1, b'x']);
    new.extend(&frame[FRAME_HEADER + start + to..]);
    let length = u32::try_from(new.len() - FRAME_HEADER).ok()?.to_be_bytes();
    new[..3].copy_from_slice(&length[1..]);
    Some(new)
}

/// Where in a header block the value of a literal `:authority` is, with its length.
fn authority(block: &[u8]) -> Option<(usize, usize)> {
    let mut at = 0;
    while at < block.len() {
        let first = block[at];
        if first & 0x80 != 0 {
            // Both from the table.
            number(block, &mut at, 7)?;
            continue;
        }
        if first & 0xe0 == 0x20 {
            // The table's size.
            number(block, &mut at, 5)?;
            continue;
        }
        let name = number(block, &mut at, if first & 0x40 != 0 { 6 } else { 4 })?;
        if name == 0 {
            string(block, &mut at)?;
        }
        let from = at;
        string(block, &mut at)?;
        if name == AUTHORITY {
            // An empty one is shorter than ours.
            return (at - from > 1).then_some((from, at));
        }
    }
    None
}

/// A number whose first byte has so many bits for it (RFC 7541, 5.1).
fn number(block: &[u8], at: &mut usize, bits: u32) -> Option<usize> {
    let most = (1_usize << bits) - 1;
    let mut value = usize::from(*block.get(*at)?) & most;
    *at += 1;
    if value < most {
        return Some(value);
    }
    for shift in (0..28).step_by(7) {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// Goes over a string (RFC 7541, 5.2).
fn string(block: &[u8], at: &mut usize) -> Option<()> {
    let length = number(block, at, 7)?;
    *at = at.checked_add(length).filter(|end| *end <= block.len())?;
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const START: &[u8; PREFACE] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags, 0, 0, 0, 1]);
        frame.extend(payload);
        frame
    }

    fn through(bytes: &[u8], step: usize) -> Vec<u8> {
        let (mut rewriter, mut out) = (Rewriter::default(), Vec::new());
        bytes.chunks(step).for_each(|chunk| rewriter.take(chunk, &mut out));
        out
    }

    /// `:method: POST`, `:authority: …`, `:scheme: http`
    fn block(form: u8, authority: &[u8]) -> Vec<u8> {
        let mut block = vec![0x83, form];
        block.push(u8::try_from(authority.len()).unwrap());
        block.extend(authority);
        block.push(0x86);
        block
    }

    #[test]
    fn the_path_of_a_socket_as_authority_is_replaced_in_each_form_and_all_else_stays() {
        let path = b"%2Fvar%2Flib%2Fkubelet%2Fplugins_registry%2Fx-reg.sock";
        for form in [0x41, 0x01, 0x11] {
            let settings = frame(4, 0, &[]);
            let data = frame(0, 1, b"abc");
            let end = HEADERS_END;
            let all =
                [START.to_vec(), settings.clone(), frame(1, end, &block(form, path)), data.clone()];
            let want = [START.to_vec(), settings, frame(1, end, &block(form, b"x")), data].concat();
            for step in [1, 2, 7, 4096] {
                assert_eq!(through(&all.concat(), step), want, "{form:#x} in steps of {step}");
            }
        }
    }

    const HEADERS_END: u8 = END_HEADERS;

    #[test]
    fn padding_and_priority_are_no_headers() {
        let payload =
            |value: &[u8]| [&[2, 0, 0, 0, 0, 9][..], &block(0x41, value), &[0, 0]].concat();
        let flags = END_HEADERS | PADDED | PRIORITY;
        let all = [START.to_vec(), frame(1, flags, &payload(b"/run/x.sock"))].concat();
        assert_eq!(through(&all, 5), [START.to_vec(), frame(1, flags, &payload(b"x"))].concat());
    }

    proptest! {
        #[test]
        fn random_bytes_however_they_are_cut_come_out_alike(bytes: Vec<u8>, flags: u8, step in 1_usize..40) {
            let all = [START.to_vec(), frame(1, flags, &bytes), frame(0, 0, &bytes), bytes].concat();
            prop_assert_eq!(through(&all, step), through(&all, all.len()));
        }
    }
}
