"""Training scenes that are also test scenes, by their file names."""

_SCENES = """
0025 0039 0058 0062 0070 0074 0077 0123 0129 0138 0140 0141 0176 0179 0202 0207 0208 0213 0215 0249 0251 0256 0259
0260 0261 0263 0285 0288 0296 0297 0314 0330 0346 0349 0351 0354 0355 0356 0357 0359 0386 0390 0392 0409 0411 1010
1046 1048 1050 1709 1712 1713 1714 1716 1724 1726 1805 1818 1821 1822 1824 1826 1828 1832 1875 1889 1896 1903 1913
1915 1921 1971 1977 1981 1982
"""

OTS_SCENES_OF_SOTS = tuple(_SCENES.split())
"""The 75 scenes of OTS's official list that are in SOTS outdoor: 76 of its 500 images, since 0330 has two."""

OUTDOOR_RAIN_TEST1 = tuple(f"im_{number:04}" for number in range(301, 351))
"""The 50 scenes of Outdoor-Rain's Test1, also in its training set; AllWeather leaves them out."""
