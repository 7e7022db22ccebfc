//! Regions of AWS.

/// Partitions of AWS: how their regions begin, their name in ARNs, and the end of their host names.
/// Of two beginnings that both fit, the first counts.
const PARTITIONS: [(&str, &str, &str); 8] = [
    ("cn-", "aws-cn", "amazonaws.com.cn"),
    ("eusc-", "aws-eusc", "amazonaws.eu"),
    ("us-gov-", "aws-us-gov", "amazonaws.com"),
    ("us-isob-", "aws-iso-b", "sc2s.sgov.gov"),
    ("us-isof-", "aws-iso-f", "csp.hci.ic.gov"),
    ("us-iso-", "aws-iso", "c2s.ic.gov"),
    ("eu-isoe-", "aws-iso-e", "cloud.adc-e.uk"),
    ("", "aws", "amazonaws.com"),
];

/// Returns the partition of `region`, as ARNs name it, and the end of its host names.
pub fn partition(region: &str) -> (&'static str, &'static str) {
    let found = PARTITIONS
        .iter()
        .find(|(start, ..)| region.starts_with(start));
    found.map_or(("aws", "amazonaws.com"), |(_, id, suffix)| (id, suffix))
}

/// Returns whether `text` has the form of a region, such as `eu-west-1` or `us-gov-east-1`.
pub fn is_region(text: &str) -> bool {
    let mut parts = text.split('-');
    let letters = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    let (first, last) = (parts.next(), parts.next_back());
    let middle: Vec<&str> = parts.collect();
    first.is_some_and(|f| letters(f) && (2..=4).contains(&f.len()))
        && last
            .is_some_and(|l| !l.is_empty() && l.len() <= 2 && l.bytes().all(|b| b.is_ascii_digit()))
        && (1..=3).contains(&middle.len())
        && middle.iter().all(|part| letters(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_have_a_form_and_a_partition() {
        for (region, id, suffix) in [
            ("eu-west-1", "aws", "amazonaws.com"),
            ("cn-north-1", "aws-cn", "amazonaws.com.cn"),
            ("us-gov-east-1", "aws-us-gov", "amazonaws.com"),
            ("us-isob-east-1", "aws-iso-b", "sc2s.sgov.gov"),
            ("us-iso-east-1", "aws-iso", "c2s.ic.gov"),
            ("eusc-de-east-1", "aws-eusc", "amazonaws.eu"),
        ] {
            assert!(is_region(region), "{region}");
            assert_eq!(partition(region), (id, suffix));
        }
        for other in [
            "",
            "Global",
            "eu",
            "eu-west",
            "eu-west-",
            "EU-west-1",
            "eu-west-1a",
            "-1",
        ] {
            assert!(!is_region(other), "{other}");
        }
    }
}
