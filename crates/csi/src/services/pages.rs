//! Pages that fit into a message.
//!
//! CSI's `max_entries` 0 means "all", but callers written in Go refuse messages above 4 MiB, so a
//! listing ends where the message gets too large, with a token, as CSI allows. The engine is asked
//! for chunks; a chunk is taken whole, because only its end has a token.

use larder_model::Result;
use larder_volumes::control::Paging;

/// The most bytes of entries in a message: Go's limit, less room for the rest of the message and
/// for the few bytes with which each entry is framed.
const LARGEST: usize = (4 << 20) - (512 << 10);
/// Entries in a chunk at first. A volume takes about 150 bytes, or 5 KiB with the largest context.
const CHUNK: usize = 512;

/// Collects entries until `paging.max_entries`, the end of the listing, or a full message; returns
/// them and the token of what follows.
///
/// # Errors
/// Those of `chunk`.
pub(super) async fn collect<T, F>(
    paging: Paging,
    size: impl Fn(&T) -> usize,
    chunk: impl FnMut(Paging) -> F,
) -> Result<(Vec<T>, String)>
where
    F: Future<Output = Result<(Vec<T>, String)>>,
{
    collect_within(LARGEST, paging, size, chunk).await
}

async fn collect_within<T, F>(
    largest: usize,
    paging: Paging,
    size: impl Fn(&T) -> usize,
    mut chunk: impl FnMut(Paging) -> F,
) -> Result<(Vec<T>, String)>
where
    F: Future<Output = Result<(Vec<T>, String)>>,
{
    let wanted = match usize::try_from(paging.max_entries) {
        Ok(max) if max > 0 => max,
        _ => usize::MAX,
    };
    let mut token = paging.starting_token;
    let mut entries: Vec<T> = Vec::new();
    let (mut bytes, mut most) = (0, CHUNK);
    loop {
        let ask = most.min(wanted - entries.len());
        let max_entries = i32::try_from(ask).unwrap_or(i32::MAX);
        let (found, next) = chunk(Paging { max_entries, starting_token: token.clone() }).await?;
        let more: usize = found.iter().map(&size).sum();
        let fits = bytes + more <= largest;
        if !fits && bytes > largest / 2 {
            return Ok((entries, token));
        }
        if !fits && found.len() > 1 {
            most = found.len() / 2;
            continue;
        }
        if !fits && !entries.is_empty() {
            return Ok((entries, token));
        }
        // One that fits nowhere is sent alone: that is all that can be done for it.
        bytes += more;
        entries.extend(found);
        token = next;
        if token.is_empty() || entries.len() >= wanted || !fits {
            return Ok((entries, token));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A listing of `sizes`; tokens are indexes.
    async fn walk(sizes: &[usize], max_entries: i32, largest: usize) -> Vec<Vec<usize>> {
        let chunk = |paging: Paging| {
            let from = paging.starting_token.parse().unwrap_or(0);
            let to = sizes.len().min(from + usize::try_from(paging.max_entries).unwrap());
            assert!(to > from || sizes.is_empty());
            let next = if to < sizes.len() { to.to_string() } else { String::new() };
            std::future::ready(Ok((sizes[from..to].to_vec(), next)))
        };
        let (mut pages, mut starting_token) = (Vec::new(), String::new());
        loop {
            let paging = Paging { max_entries, starting_token };
            let (page, next) = collect_within(largest, paging, |size| *size, chunk).await.unwrap();
            pages.push(page);
            if next.is_empty() {
                return pages;
            }
            starting_token = next;
        }
    }

    #[tokio::test]
    async fn all_means_all_while_it_fits() {
        assert_eq!(walk(&[], 0, 10).await, [[]; 1] as [[usize; 0]; 1]);
        let sizes = vec![1; 2000];
        assert_eq!(walk(&sizes, 0, 2000).await, [sizes]);
    }

    #[tokio::test]
    async fn what_does_not_fit_comes_in_further_pages() {
        let sizes: Vec<usize> = (0..3000).map(|n| 1 + n % 7).collect();
        let pages = walk(&sizes, 0, 1000).await;
        assert!(pages.iter().all(|page| page.iter().sum::<usize>() <= 1000));
        assert!(pages.len() < 40, "pages are filled: {}", pages.len());
        assert_eq!(pages.concat(), sizes);
    }

    #[tokio::test]
    async fn an_entry_that_fits_nowhere_is_sent_alone() {
        assert_eq!(walk(&[5, 50, 5], 0, 10).await, [vec![5], vec![50], vec![5]]);
    }

    #[tokio::test]
    async fn the_callers_bound_is_kept() {
        let pages = walk(&vec![1; 1500], 700, 1_000_000).await;
        assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [700, 700, 100]);
    }
}
