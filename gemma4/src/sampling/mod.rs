//! From logits to tokens: options, the sampler chain, and lossless speculative acceptance.
//!
//! A row of logits is a `&[f32]` of length `n_vocab`; entry `i` is the unnormalised natural-log
//! probability of token `i`. [`Sampler::sample`] turns one row into one [`Choice`].
//!
//! # The chain
//!
//! The stages run in the order of llama.cpp's default chain. Each stage sees the tokens that the one
//! before left, with their probabilities renormalised.
//!
//! | # | stage | keeps or changes | source |
//! |---|---|---|---|
//! | 1 | logit bias | `l += bias`; `-inf` bans the token | OpenAI API, `logit_bias` |
//! | 2 | penalties | see below | Keskar et al., arXiv:1909.05858; OpenAI API |
//! | 3 | top-k | the `top_k` largest logits | Fan et al., arXiv:1805.04833 |
//! | 4 | typical | mass `>= typical_p`, by rising `abs(-ln p - H)` | Meister et al., arXiv:2202.00666 |
//! | 5 | top-p | the smallest set of mass `>= top_p`, by falling `p` | Holtzman et al., arXiv:1904.09751 |
//! | 6 | min-p | tokens with `p >= min_p * p_max` | Nguyen et al., arXiv:2407.01082 |
//! | 7 | temperature | `l /= temperature` | |
//! | 8 | draw | one token, by inverse transform over rising token ids | |
//!
//! Stages 3 to 6 judge the distribution at temperature 1, because temperature comes last.
//! Equal logits rank by rising token id everywhere, so every cut is exact and repeatable. `H` is the entropy,
//! `-ln p` a token's surprise and `p_max` the largest probability left.
//!
//! **Penalties** look at the last `penalty_last_n` accepted tokens. A token that occurs there `c > 0`
//! times gets `l = l / repetition_penalty` if `l > 0`, else `l * repetition_penalty`, and then
//! `l -= c * frequency_penalty + presence_penalty`. This is llama.cpp's formula.
//!
//! **Greedy** (`temperature <= 0`) takes the largest logit after stages 1 and 2, the lowest id on a
//! tie. Stages 3 to 6 are skipped.
//!
//! # Unusual logits
//!
//! A NaN or `-inf` logit is never chosen. If `+inf` occurs, the tokens that have it share all the mass
//! equally, which is the limit of the softmax. If nothing can be chosen, the call fails with
//! [`Error::Option`](crate::Error::Option) and no random number is used.
//!
//! # Randomness
//!
//! Every non-greedy [`Sampler::sample`] takes exactly one 64-bit number from a ChaCha8 stream, even if
//! one token is left. Greedy takes none. So the n-th sampled token uses the n-th number, however the
//! logits were computed: speculative decoding that samples each verified row and compares it with the
//! draft reproduces the draft-free output. Exponentials are computed by this crate rather than by the
//! platform's maths library, so a seed means the same on every platform for bit-equal logits.

mod chain;
mod distribution;
mod divergence;
mod math;
mod options;
mod sampler;
#[cfg(test)]
mod tests;

pub use distribution::{Distribution, Verdict, speculative_accept};
pub use divergence::Divergence;
pub use math::argmax;
pub use options::SamplingOptions;
pub use sampler::{Choice, Sampler};
pub(crate) use sampler::{Likely, Row};
