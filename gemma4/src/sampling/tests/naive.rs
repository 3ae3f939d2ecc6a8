//! The chain as its definitions read: full sorts, `f64`, no shortcuts.

use super::super::SamplingOptions;

/// Result of the reference chain.
pub(super) struct Reference {
    /// `(id, probability)` by rising id.
    pub entries: Vec<(u32, f64)>,
    /// Least distance of any cut from where it would fall differently. Near 0 rounding decides.
    pub margin: f64,
}

/// Bias and penalties over a history of which the last `penalty_last_n` tokens count.
pub(super) fn adjust(options: &SamplingOptions, history: &[u32], logits: &[f32]) -> Vec<f32> {
    let recent = &history[history.len().saturating_sub(options.penalty_last_n)..];
    let mut out = logits.to_vec();
    for (id, l) in out.iter_mut().enumerate() {
        for &(token, bias) in &options.logit_bias {
            if token as usize == id {
                *l += bias;
            }
        }
        let count = recent.iter().filter(|&&t| t as usize == id).count();
        if count > 0 {
            let rep = options.repetition_penalty;
            *l = if *l > 0.0 { *l / rep } else { *l * rep };
            *l -= count as f32 * options.frequency_penalty + options.presence_penalty;
        }
    }
    out
}

/// Shortest prefix of mass `>= p`, at least `min_keep`, and how clear the cut was.
fn prefix(items: &[(u32, f64)], p: f32, min_keep: usize) -> (usize, f64) {
    let total: f64 = items.iter().map(|e| e.1.exp()).sum();
    let (mut sum, mut margin, mut keep) = (0.0, f64::INFINITY, items.len());
    for (i, e) in items.iter().enumerate() {
        sum += e.1.exp() / total;
        margin = margin.min((sum - f64::from(p)).abs());
        if sum >= f64::from(p) {
            keep = i + 1;
            break;
        }
    }
    (keep.max(min_keep).min(items.len()), margin)
}

/// The chain after [`adjust`]. Needs finite logits or `-inf`.
pub(super) fn chain(options: &SamplingOptions, logits: &[f32]) -> Reference {
    let mut items: Vec<(u32, f64)> = logits
        .iter()
        .enumerate()
        .map(|(i, &l)| (i as u32, f64::from(l)))
        .filter(|e| e.1.is_finite())
        .collect();
    let rank = |a: &(u32, f64), b: &(u32, f64)| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0));
    let min_keep = options.min_keep.max(1);
    let mut margin = f64::INFINITY;
    items.sort_by(rank);
    if options.top_k > 0 {
        items.truncate(options.top_k);
    }
    if options.typical_p < 1.0 {
        margin = margin.min(typical(&mut items, options.typical_p, min_keep));
        items.sort_by(rank);
    }
    if options.top_p < 1.0 {
        let (keep, m) = prefix(&items, options.top_p, min_keep);
        items.truncate(keep);
        margin = margin.min(m);
    }
    if options.min_p > 0.0 {
        let floor = items[0].1 + f64::from(options.min_p).ln();
        margin = items.iter().map(|e| (e.1 - floor).abs()).fold(margin, f64::min);
        let keep = items.iter().filter(|e| e.1 >= floor).count();
        items.truncate(keep.max(min_keep));
    }
    let t = f64::from(options.temperature);
    let max = items[0].1;
    let total: f64 = items.iter().map(|e| ((e.1 - max) / t).exp()).sum();
    let mut entries: Vec<_> = items.iter().map(|e| (e.0, ((e.1 - max) / t).exp() / total)).collect();
    entries.sort_by_key(|e| e.0);
    Reference { entries, margin }
}

fn typical(items: &mut Vec<(u32, f64)>, p: f32, min_keep: usize) -> f64 {
    let total: f64 = items.iter().map(|e| e.1.exp()).sum();
    let surprise = |e: &(u32, f64)| total.ln() - e.1;
    let entropy: f64 = items.iter().map(|e| (-surprise(e)).exp() * surprise(e)).sum();
    let distance = |e: &(u32, f64)| (surprise(e) - entropy).abs();
    // Equal logits are an exact tie, which the id breaks in both; rounding must not come first.
    let key = |e: &(u32, f64)| (distance(e) * 1e9).round();
    items.sort_by(|a, b| key(a).total_cmp(&key(b)).then(a.0.cmp(&b.0)));
    let order = items.windows(2).filter(|w| w[0].1 != w[1].1);
    let near = order.map(|w| (distance(&w[0]) - distance(&w[1])).abs()).fold(f64::INFINITY, f64::min);
    let (keep, margin) = prefix(items, p, min_keep);
    items.truncate(keep);
    margin.min(near)
}
